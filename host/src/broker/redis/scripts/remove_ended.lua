-- Removes records that have ended. ARGV: before when ('' for any time), keys. Looked at and removed in one step, so that none is lost that
-- somebody lets run again in between. Gives how many.
local before, removed = tonumber(ARGV[1]), 0
local has_ended = {success = true, error = true, cancel = true, retry = true}
for number = 2, #ARGV do
    local key = ARGV[number]
    local found = redis.pcall('HMGET', key, 'status', 'updated_at')
    local at = tonumber(found[2] or '')
    if has_ended[found[1] or ''] and (not before or at and at < before) then removed = removed + redis.call('DEL', key) end
end
return removed
