-- Forgets a worker, and puts all that it held back to the front of the queue. ARGV: worker, now. Gives how many.
local worker, now = ARGV[1], ARGV[2]
local held = leases_of({[worker] = true})
for number = #held, 1, -1 do
    local lease = held[number]
    wait_again(lease.uuid, lease.item, lease.item, now)
end
redis.call('HDEL', workers, worker)
redis.call('DEL', own .. 'cancel:' .. worker)
return #held
