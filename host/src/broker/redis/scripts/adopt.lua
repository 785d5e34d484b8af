-- Leases a task that a worker without leases, a Python one, has left. ARGV: worker, now, item. Gives a list of it, or an empty one.
local wrong = wrong_type()
if wrong then return wrong end
local worker, item = ARGV[1], ARGV[3]
local uuid = string.match(item, ':([^:]*):[^:]*$')
uuid = uuid and string.lower(uuid)
if not uuid or not redis.call('ZSCORE', process, item) or redis.call('HEXISTS', leases, uuid) == 1 then return {} end
local status = #uuid == 36 and is_there(uuid) and redis.call('HGET', record(uuid), 'status')
-- QTasks' workers leave items of tasks that have ended, too.
if status ~= 'new' and status ~= 'process' then
    redis.call('ZREM', process, item)
    return {}
end
local delivery = redis.call('INCR', own .. 'deliveries')
redis.call('HSET', leases, uuid, lease(delivery, worker, item))
return {{item, uuid, delivery}}
