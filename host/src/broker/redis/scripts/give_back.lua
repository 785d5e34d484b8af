-- Puts tasks back to the front of the queue. ARGV: now, how many, and for each, the last first: uuid, delivery, its item ('' for the
-- one it came with), the number of fields and values, these.
local wrong = wrong_type()
if wrong then return wrong end
local now, count, at = ARGV[1], tonumber(ARGV[2]), 3
for _ = 1, count do
    local uuid, delivery, new_item, fields = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    local value = redis.call('HGET', leases, uuid)
    local current, _, item = lease_of(value or '')
    if current == delivery then
        if is_there(uuid) then set_fields(record(uuid), at + 4, at + 3 + fields) end
        wait_again(uuid, item, new_item ~= '' and new_item or item, now)
    end
    at = at + 4 + fields
end
