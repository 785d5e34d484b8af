-- Records what became of attempts, each whole or not at all. ARGV: how many, then uuid, delivery, time and status of each, then for each:
-- attempt ('' or JSON), the number of fields and values, these; child ('' or a uuid), and with a child its item, its due time ('' or
-- seconds), the number of fields and values, these. Gives the uuids whose lease was lost.
local count = tonumber(ARGV[1])
local uuids = {}
for number = 1, count do uuids[number] = ARGV[4 * number - 2] end
local values = redis.call('HMGET', leases, unpack(uuids))

-- Whether these fields are all that a record needs.
local function whole(first, last)
    for at = first, last, 2 do
        if ARGV[at] == 'args' then return true end
    end
    return false
end

local lost, done, items, times, failed = {}, {}, {}, {}, {}
local at = 2 + 4 * count
for number, uuid in ipairs(uuids) do
    local delivery, time, status = ARGV[4 * number - 1], ARGV[4 * number], ARGV[4 * number + 1]
    local attempt, fields = ARGV[at], tonumber(ARGV[at + 1])
    local first, child = at + 2, ARGV[at + 2 + fields]
    at = at + 3 + fields
    local held, kept, item
    if values[number] then
        local current, _, its_item = lease_of(values[number])
        held, item = current == delivery, its_item
    end
    if held then
        -- Where QTasks' `flush_all` has removed the record, half of one would be in everybody's way.
        local added = set_fields(record(uuid), first, first + fields - 1)
        kept = added and (added * 2 < fields or whole(first, first + fields - 1))
        if added and not kept then redis.call('DEL', record(uuid)) end
        done[#done + 1] = uuid
        items[#items + 1] = item
        times[#times + 1] = time
        times[#times + 1] = uuid
        if kept and attempt ~= '' then
            failed[#failed + 1] = {attempt = attempt, uuid = uuid, child = child}
        end
    else
        -- Not lost where just this was recorded: then the answer to an earlier call did not arrive.
        local recorded = redis.pcall('HMGET', record(uuid), 'updated_at', 'status')
        if recorded[1] ~= time or recorded[2] ~= status then lost[#lost + 1] = uuid end
    end
    if child ~= '' then
        local child_item, due, child_fields = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
        if kept then
            set_fields(record(child), at + 3, at + 2 + child_fields)
            if due == '' then
                redis.call('RPUSH', queue, child_item)
            else
                redis.call('ZADD', delayed, due, child_item)
            end
        end
        at = at + 3 + child_fields
    end
end
-- The attempts stand in a stream, eight in an entry; each record says where its own are.
for from = 1, #failed, 8 do
    local entry = {}
    for place = from, math.min(from + 7, #failed) do
        entry[#entry + 1] = 'attempt'
        entry[#entry + 1] = failed[place].attempt
    end
    local id = redis.call('XADD', attempts, '*', unpack(entry))
    for place = from, math.min(from + 7, #failed) do
        local one = failed[place]
        local where = string.format('%s:%d', id, place - from)
        if redis.call('HSETNX', record(one.uuid), 'attempts_at', where) == 0 then
            where = redis.call('HGET', record(one.uuid), 'attempts_at') .. ' ' .. where
            redis.call('HSET', record(one.uuid), 'attempts_at', where)
        end
        if one.child ~= '' then redis.call('HSET', record(one.child), 'attempts_at', where) end
    end
end
call_over('HDEL', leases, done)
call_over('ZREM', process, items)
have_ended(times)
return lost
