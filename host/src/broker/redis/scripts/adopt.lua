-- Leases a task that a worker without leases, a Python one, has left. ARGV: worker, now, item. Gives a list of it, or an empty one.
local wrong = wrong_type()
if wrong then return wrong end
local worker, item = ARGV[1], ARGV[3]
local uuid = string.match(item, ':([^:]*):[^:]*$')
uuid = uuid and string.lower(uuid)
if not uuid or not redis.call('ZSCORE', process, item) or redis.call('HEXISTS', leases, uuid) == 1 then return {} end
local fields = redis.pcall('HLEN', record(uuid))
if type(fields) == 'table' or fields == 0 then
    redis.call('ZREM', process, item)
    return {}
end
local delivery = redis.call('INCR', own .. 'deliveries')
redis.call('HSET', leases, uuid, lease(delivery, worker, item))
return {{item, uuid, delivery}}
