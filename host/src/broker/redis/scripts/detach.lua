-- Forgets a worker, and puts all that it held back to the front of the queue. ARGV: worker, now. Gives how many.
local wrong = wrong_type()
if wrong then return wrong end
local worker, now = ARGV[1], ARGV[2]
local held = leases_of({[worker] = true})
for number = #held, 1, -1 do
    local one = held[number]
    wait_again(one.uuid, one.item, one.item, now)
end
redis.call('HDEL', workers, worker)
break_claim(worker)
redis.call('DEL', own .. 'cancel:' .. worker)
return #held
