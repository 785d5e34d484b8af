-- Leases what lost workers held to another one. ARGV: worker, now, after how many losses a task is set aside, and for each lost worker
-- its id and the beat it stands at ('' where it has none). Gives {{item, uuid, delivery}, …}, and the uuids of
-- those that were set aside.
local wrong = wrong_type()
if wrong then return wrong end
local worker, now, max_losses = ARGV[1], ARGV[2], tonumber(ARGV[3])
local dead = {}
for at = 4, #ARGV, 2 do
    if (redis.call('HGET', workers, ARGV[at]) or '') == ARGV[at + 1] then
        redis.call('HDEL', workers, ARGV[at])
        break_claim(ARGV[at])
        redis.call('DEL', own .. 'cancel:' .. ARGV[at])
        dead[ARGV[at]] = true
    end
end
local taken, set_aside = {}, {}
for _, held in ipairs(leases_of(dead)) do
    local uuid, item = held.uuid, held.item
    local losses, had_begun
    if is_there(uuid) then
        local found = redis.call('HMGET', record(uuid), 'losses', 'begun')
        losses, had_begun = tonumber(found[1] or '') or 0, tonumber(found[2] or '') == held.delivery
        -- The first loss counts for all that the worker held. What was lost before is run apart, and says when it begins.
        losses = had_begun and losses + 1 or math.max(losses, 1)
        redis.call('HSET', record(uuid), 'losses', losses)
    end
    if not losses then
        -- Somebody has removed it meanwhile.
        redis.call('HDEL', leases, uuid)
        redis.call('ZREM', process, item)
    elseif had_begun and losses >= max_losses then
        local reason = losses .. ' workers were lost while they had this task'
        redis.call('HSET', record(uuid), 'status', 'error', 'updated_at', now, 'traceback', 'WorkerLost: ' .. reason,
            'error_type', 'WorkerLost', 'error_message', reason, 'dead_letter', reason)
        redis.call('HDEL', leases, uuid)
        redis.call('ZREM', process, item)
        have_ended({now .. ' ' .. uuid})
        set_aside[#set_aside + 1] = uuid
    else
        local delivery = redis.call('INCR', own .. 'deliveries')
        redis.call('HSET', leases, uuid, lease(delivery, worker, item))
        taken[#taken + 1] = {item, uuid, delivery}
    end
end
return {taken, set_aside}
