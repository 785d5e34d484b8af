-- Forgets a worker, and puts all that it held back to the front of the queue. ARGV: worker, now. Gives how many.
local worker, now = ARGV[1], ARGV[2]
local held = leases_of({[worker] = true})
for number = #held, 1, -1 do
    local lease = held[number]
    redis.call('HDEL', leases, lease.uuid)
    redis.call('ZREM', process, lease.item)
    redis.call('HSET', record(lease.uuid), 'status', 'new', 'updated_at', now)
    redis.call('LPUSH', queue, lease.item)
end
-- Another worker's wait may have moved these; wherever they wait, they wait at the front.
while redis.call('LMOVE', inbox, queue, 'RIGHT', 'LEFT') do end
redis.call('HDEL', workers, worker)
redis.call('DEL', own .. 'cancel:' .. worker)
return #held
