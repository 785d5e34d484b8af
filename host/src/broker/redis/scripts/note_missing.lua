-- Before the writes of a transaction: notes which of these records somebody has removed. ARGV: keys of records. EXISTS of all of them is
-- one call; they are looked at one by one only where one is missing.
redis.call('DEL', own .. 'missing')
if redis.call('EXISTS', unpack(ARGV)) == #ARGV then return end
for _, key in ipairs(ARGV) do
    if redis.call('EXISTS', key) == 0 then redis.call('SADD', own .. 'missing', key) end
end
