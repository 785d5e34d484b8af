-- Lets an ended task run again, and one that nobody has any more. ARGV: uuid, now.
local wrong = wrong_type()
if wrong then return wrong end
local uuid, now = ARGV[1], ARGV[2]
local found = redis.call('HMGET', record(uuid), 'status', 'task_name', 'priority')
local status = found[1]
if not status then return 'unknown' end
-- A task that was retried runs again under its first id, once its last retry has ended, and keeps what is known of all attempts.
local last = last_of(uuid)
local ended_at = redis.call('HMGET', record(last), 'status', 'attempts_at', 'error_type', 'task_name', 'priority')
if ended_at[1] == 'new' or ended_at[1] == 'process' then
    local item = (ended_at[4] or '') .. ':' .. last .. ':' .. (ended_at[5] or '')
    if redis.call('HEXISTS', leases, last) == 1 or place_of(last, item) then return 'underway' end
end
-- What stands in its record is what was put there instead of what could not be read.
if ended_at[3] == 'UnreadableTask' then return 'unreadable' end
if last ~= uuid and ended_at[2] then redis.call('HSET', record(uuid), 'attempts_at', ended_at[2]) end
redis.call('HDEL', record(uuid), 'returning', 'traceback', 'cancel_reason', 'dead_letter', 'due', 'losses', 'begun', 'cancel_asked', 'retry',
    'retry_child_uuid', 'resolved_by')
redis.call('HDEL', record(uuid), 'error_type', 'error_message', 'error_args', 'error_kwargs', 'error_causes', 'error_location',
    'original_error_type', 'original_error_message')
redis.call('HSET', record(uuid), 'status', 'new', 'updated_at', now, 'attempt', '1')
redis.call('RPUSH', queue, (found[2] or '') .. ':' .. uuid .. ':' .. (found[3] or '0'))
return 'done'
