-- Removes ended records that are older. ARGV: before when, how many at most, now. Gives how many were removed, and how many were looked at.
local before, most, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local removed, looked = 0, 0
while looked < most do
    local note = redis.call('LINDEX', ended, 0)
    if not note then break end
    local time, uuid = string.match(note, '^(%S+) (.*)$')
    local at = tonumber(time or '')
    -- What a clock that is ahead noted is not to hold up what stands behind it: its record is found where all are walked through.
    if at and at >= before and at <= now then break end
    redis.call('LPOP', ended)
    looked = looked + 1
    if uuid then
        local found = redis.call('HMGET', record(uuid), 'status', 'updated_at')
        -- It may run again.
        local is_old = tonumber(found[2] or '') and tonumber(found[2]) < before
        if is_old and found[1] ~= 'new' and found[1] ~= 'process' then
            removed = removed + redis.call('DEL', record(uuid))
        end
    end
end
return {removed, looked}
