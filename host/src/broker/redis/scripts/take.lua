-- Leases tasks. ARGV: worker, now, most, how many at the head of the queue are looked at.
-- Gives the items, whose deliveries follow each other, the first delivery, when the next delayed task is due, and how many items were
-- taken off the queue. The records are read by the caller, who has them alone now: thousands of texts that only pass through here would
-- cost more than all the rest.
local wrong = wrong_type()
if wrong then return wrong end
local worker, now, most, window = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 512)
for _, item in ipairs(due) do
    redis.call('ZREM', delayed, item)
    -- QTasks' `flush_all` knows nothing of delayed tasks: what has no record any more is gone.
    local uuid = string.match(item, ':([^:]*):[^:]*$')
    if uuid and is_there(uuid) then
        redis.call('RPUSH', queue, item)
    end
end

local waiting = redis.call('LRANGE', queue, 0, math.max(window, most) - 1)
local count = math.min(most, #waiting)

-- Whether all items end in ":0", as they nearly always do: what is done for each of so many is kept short.
local function none_has_a_priority()
    for place = 1, #waiting do
        local colon, zero = string.byte(waiting[place], -2, -1)
        if zero ~= 48 or colon ~= 58 then return false end
    end
    return true
end

-- All places, those of the highest priority first, where somebody overtakes; nil: the first ones are to be taken.
local function overtaking()
    local lowest, overtaken = math.huge, false
    local priorities, places = {}, {}
    for place, item in ipairs(waiting) do
        local priority = tonumber(string.match(item, ':(-?%d+)$')) or 0
        priorities[place], places[place] = priority, place
        if place <= most then
            lowest = math.min(lowest, priority)
        elseif priority > lowest then
            overtaken = true
        end
    end
    if not overtaken then return nil end
    table.sort(places, function(a, b)
        if priorities[a] ~= priorities[b] then return priorities[a] > priorities[b] end
        return a < b
    end)
    return places
end

-- A number for each, before anything leaves the queue: where something else stands in its place, that is an error here, and nothing is
-- lost. Some stay unused.
local first = count > 0 and redis.call('INCRBY', own .. 'deliveries', count) - count + 1

local items = waiting
local places = not none_has_a_priority() and overtaking()
if places then
    items = {}
    for number = 1, count do
        items[number] = waiting[places[number]]
        redis.call('LREM', queue, 1, items[number])
    end
elseif count > 0 then
    redis.call('LTRIM', queue, count, -1)
end

local next_due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2] or ''
if count == 0 then return {{}, 0, next_due, 0} end

-- What no worker of any kind can run becomes a record of its own, with the reason, where people and clients find it.
local function set_aside(item, reason)
    local hex = redis.sha1hex(item .. now)
    local uuid = string.format('%s-%s-4%s-a%s-%s', string.sub(hex, 1, 8), string.sub(hex, 9, 12), string.sub(hex, 13, 15),
        string.sub(hex, 16, 18), string.sub(hex, 19, 30))
    -- Python's clients read UTF-8 and nothing else.
    local found = string.gsub(string.sub(item, 1, 1000), '[^\32-\126]', '?')
    redis.call('HSET', record(uuid), 'task_name', 'unreadable', 'priority', '0', 'args', '[]', 'kwargs', '{}', 'created_at', now,
        'updated_at', now, 'status', 'error', 'traceback', reason, 'error_type', 'UnreadableTask', 'error_message', reason,
        'dead_letter', reason, 'found_item', found)
    have_ended({now .. ' ' .. uuid})
end

local four = '%x%x%x%x'
local uuid_shape = four .. four .. '%-' .. four .. '%-' .. four .. '%-' .. four .. '%-' .. four .. four .. four
local plain_item, any_item = '^:(' .. uuid_shape .. '):0$', ':(' .. uuid_shape .. '):([^:]*)$'
local uuids, items_of, priorities_of = {}, {}, {}
for place = 1, count do
    local item = items[place]
    local uuid, priority = string.match(item, plain_item, -39), '0'
    if not uuid then uuid, priority = string.match(item, any_item) end
    if not uuid then
        set_aside(item, 'its item in the queue is not task_name:uuid:priority')
    else
        local number = #uuids + 1
        uuids[number] = string.lower(uuid)
        items_of[number] = item
        priorities_of[number] = priority == '0' and 0 or tonumber(string.match(priority, '^-?%d+$') or '') or 0
    end
end
if #uuids == 0 then return {{}, 0, next_due, count} end

local taken, held, running, seen = {}, {}, {}, {}
local leased = redis.call('HMGET', leases, unpack(uuids))
for place, uuid in ipairs(uuids) do
    -- What is leased was queued twice; it runs already.
    if not leased[place] and not seen[uuid] then
        local item, key = items_of[place], record(uuid)
        local added = redis.pcall('HSET', key, 'status', 'process', 'updated_at', now)
        if type(added) == 'table' then
            set_aside(item, 'its record is not a hash: ' .. added.err)
        else
            -- Where there was no record, there is none now.
            if added == 2 and redis.call('HLEN', key) == 2 then redis.call('DEL', key) end
            seen[uuid] = true
            held[#held + 1] = uuid
            held[#held + 1] = lease(first + #taken, worker, item)
            running[#running + 1] = priorities_of[place]
            running[#running + 1] = item
            taken[#taken + 1] = item
        end
    end
end
call_over('HSET', leases, held)
call_over('ZADD', process, running)
return {taken, first, next_due, count}
