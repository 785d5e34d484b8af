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

local function remove(item)
    return redis.call('LREM', queue, 1, item) + redis.call('ZREM', delayed, item) > 0
end
local item = (found[2] or '') .. ':' .. uuid .. ':' .. (found[3] or '')
local removed = remove(item)
if not removed then
    -- The record may have been changed since it was queued.
    for _, item in ipairs(redis.call('LRANGE', queue, 0, -1)) do
        if string.find(item, uuid, 1, true) then
            removed = remove(item)
            break
        end
    end
end
if not removed then return 'foreign' end
redis.call('HSET', record(uuid), 'status', 'cancel', 'cancel_reason', reason, 'updated_at', now)
have_ended({now .. ' ' .. uuid})
return 'done'
