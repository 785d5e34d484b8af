-- Records what became of attempts, each whole or not at all. ARGV: how many, the name of this batch of attempts, then uuid, delivery, time
-- and status of each, then for each: attempt ('' or a line of JSON), where the attempts before it stand ('' or places), the number of fields and
-- values, these; child ('' or a uuid), and with a child its item, its due time ('' or seconds), the number of fields and values, these.
-- Gives the uuids whose lease was lost.
local wrong = wrong_type()
if wrong then return wrong end
local count, batch = tonumber(ARGV[1]), ARGV[2]
local uuids = {}
for number = 1, count do uuids[number] = ARGV[4 * number - 1] end
local values = redis.call('HMGET', leases, unpack(uuids))

local lost, held, failed = {}, {}, {}
local at = 3 + 4 * count
for number, uuid in ipairs(uuids) do
    local one = {uuid = uuid, time = ARGV[4 * number + 1], attempt = ARGV[at], before = ARGV[at + 1], first = at + 3}
    one.fields = tonumber(ARGV[at + 2])
    one.child = ARGV[one.first + one.fields]
    at = one.first + one.fields + 1
    if one.child ~= '' then
        one.child_at = at
        at = at + 3 + tonumber(ARGV[at + 2])
    end
    local delivery, _, item = lease_of(values[number] or '')
    if delivery == ARGV[4 * number] then
        one.item = item
        held[#held + 1] = one
        if one.attempt ~= '' then failed[#failed + 1] = one end
    else
        -- Not lost where just this was recorded: then the answer to an earlier call did not arrive.
        local recorded = redis.pcall('HMGET', record(uuid), 'updated_at', 'status')
        if recorded[1] ~= one.time or recorded[2] ~= ARGV[4 * number + 2] then lost[#lost + 1] = uuid end
    end
end

-- The attempts of a batch stand in one text; each record says where its own are: batch, first byte, length.
if #failed > 0 then
    local lines, length = {}, 0
    for place, one in ipairs(failed) do
        lines[place] = one.attempt
        one.where = one.before .. batch .. ':' .. length .. ':' .. (#one.attempt - 1)
        length = length + #one.attempt
    end
    redis.call('SET', own .. 'attempts:' .. batch, table.concat(lines))
    redis.call('ZADD', attempts, failed[#failed].time, batch)
end

-- Whether these fields are all that a record needs.
local function whole(first, last)
    for place = first, last, 2 do
        if ARGV[place] == 'args' then return true end
    end
    return false
end

local done, items, notes = {}, {}, {}
for number, one in ipairs(held) do
    local last = one.first + one.fields - 1
    local added = set_fields(record(one.uuid), one.first, last, one.where)
    -- Where QTasks' `flush_all` has removed the record, so that all fields are new, half of one would be in everybody's way.
    local all = one.fields / 2 + (one.where and 1 or 0)
    local kept = added and (added < all or whole(one.first, last))
    if added and not kept then redis.call('DEL', record(one.uuid)) end
    if kept and one.child_at then
        local child_item, due, fields = ARGV[one.child_at], ARGV[one.child_at + 1], tonumber(ARGV[one.child_at + 2])
        set_fields(record(one.child), one.child_at + 3, one.child_at + 2 + fields, one.where)
        local cancel_asked = redis.call('HGET', record(one.uuid), 'cancel_asked')
        if cancel_asked then
            -- It need not wait for its time to be cancelled.
            due = ''
            redis.call('HSET', record(one.child), 'cancel_asked', cancel_asked)
            redis.call('HDEL', record(one.child), 'due')
        end
        if due == '' then
            redis.call('RPUSH', queue, child_item)
        else
            redis.call('ZADD', delayed, due, child_item)
        end
    end
    done[number], items[number], notes[number] = one.uuid, one.item, one.time .. ' ' .. one.uuid
end
call_over('HDEL', leases, done)
call_over('ZREM', process, items)
have_ended(notes)
return lost
