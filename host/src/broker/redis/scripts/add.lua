-- Puts new tasks into the queue, all or none. ARGV: how many, and for each: uuid, item, due time ('' or seconds), the number of fields
-- and values, these. Gives the uuid that is there already, or ''.
local wrong = wrong_type()
if wrong then return wrong end
local count = tonumber(ARGV[1])
local at, seen = 2, {}
for _ = 1, count do
    if seen[ARGV[at]] or redis.call('EXISTS', record(ARGV[at])) == 1 then return ARGV[at] end
    seen[ARGV[at]] = true
    at = at + 4 + tonumber(ARGV[at + 3])
end
at = 2
for _ = 1, count do
    local item, due, fields = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    set_fields(record(ARGV[at]), at + 4, at + 3 + fields)
    if due == '' then
        redis.call('RPUSH', queue, item)
    else
        redis.call('ZADD', delayed, due, item)
    end
    at = at + 4 + fields
end
return ''
