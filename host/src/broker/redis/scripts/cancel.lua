-- Cancels a task that waits, or tells the worker that has it; of a task that was retried, the last retry. ARGV: uuid, now, reason.
local wrong = wrong_type()
if wrong then return wrong end
local uuid, now, reason = last_of(ARGV[1]), ARGV[2], ARGV[3]
local found = redis.call('HMGET', record(uuid), 'status', 'task_name', 'priority')
local status = found[1]
if not status then return 'unknown' end
local value = redis.call('HGET', leases, uuid)
if value then
    local _, worker = lease_of(value)
    redis.call('HSET', own .. 'cancel:' .. worker, uuid, reason)
    -- Should its worker not come to it.
    redis.call('HSET', record(uuid), 'cancel_asked', reason)
    return 'asked'
end
if status ~= 'new' and status ~= 'process' then return 'ended' end

local item, place = place_of(uuid, (found[2] or '') .. ':' .. uuid .. ':' .. (found[3] or ''))
if place == process then return 'foreign' end
if place == queue then redis.call('LREM', queue, 1, item) end
if place == delayed then redis.call('ZREM', delayed, item) end
redis.call('HSET', record(uuid), 'status', 'cancel', 'cancel_reason', reason, 'updated_at', now)
have_ended({now .. ' ' .. uuid})
return 'done'
