-- Notes that the attempt of a lease begins. ARGV: uuid, delivery.
local delivery = lease_of(redis.call('HGET', leases, ARGV[1]) or '')
if delivery == ARGV[2] and is_there(ARGV[1]) then redis.call('HSET', record(ARGV[1]), 'begun', delivery) end
