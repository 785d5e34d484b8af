-- Replaces fields of a record that stands where the caller thinks it does. ARGV: uuid, status, how many fields are removed, these,
-- fields and values.
local status = redis.call('HGET', record(ARGV[1]), 'status')
if not status then return 'unknown' end
if status ~= ARGV[2] then return 'changed' end
local removed = tonumber(ARGV[3])
for at = 4, 3 + removed do redis.call('HDEL', record(ARGV[1]), ARGV[at]) end
set_fields(record(ARGV[1]), 4 + removed, #ARGV)
return 'done'
