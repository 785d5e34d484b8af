-- Before each script: the project's keys, and what several scripts do. KEYS[1] is the project's name.
local project = KEYS[1]
-- QTasks' keys.
local queue, process = project .. ':task_queue', project .. ':task_process'
local function record(uuid) return project .. ':' .. uuid end
-- Keys of this program, under another prefix than QTasks': its `flush_all` and `get_all` take all of theirs.
local own = 'qtasks-host:' .. project .. ':'
-- delayed: a sorted set, items by the time they are due
-- leases: a hash, uuid -> "DELIVERY WORKER ITEM"
-- workers: a hash, worker -> beat
-- ended: a list, "TIME UUID" of each record that ended, in that order
-- attempts: a sorted set, the names of batches of attempts that failed, by time; attempts:BATCH: a text, a line of JSON for each attempt
-- claim:WORKER: a number, for as long as nobody takes anything from this worker; whoever does removes it
local delayed, leases, workers = own .. 'delayed', own .. 'leases', own .. 'workers'
local ended, attempts, changed = own .. 'ended', own .. 'attempts', own .. 'changed'

-- Called before the first write: an error in between would leave a script half done, and a task nowhere. Gives an error, or nil.
local function wrong_type()
    local expected = {[queue] = 'list', [process] = 'zset', [delayed] = 'zset', [leases] = 'hash', [workers] = 'hash', [ended] = 'list', [attempts] = 'zset'}
    for key, wanted in pairs(expected) do
        local found = redis.call('TYPE', key).ok
        if found ~= 'none' and found ~= wanted then
            return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. '; expected a ' .. wanted .. ', move it away')
        end
    end
end

-- A lease as it is kept. Joined, not formatted: an item may hold any byte.
local function lease(delivery, worker, item)
    return string.format('%d', delivery) .. ' ' .. worker .. ' ' .. item
end

-- Delivery, worker and item of a lease.
local function lease_of(value)
    return string.match(value, '^(%d+) (%S+) (.*)$')
end

-- A call over a list of any length.
local function call_over(command, key, list)
    for from = 1, #list, 4000 do
        redis.call(command, key, unpack(list, from, math.min(from + 3999, #list)))
    end
end

-- Lets no transaction of this worker through any more that it sent before.
local function break_claim(worker)
    redis.call('DEL', own .. 'claim:' .. worker)
end

-- Notes that records have ended: "TIME UUID" of each.
local function have_ended(notes)
    call_over('RPUSH', ended, notes)
    if #notes > 0 then redis.call('PUBLISH', changed, '') end
end

-- Whether there is a record of this uuid, and nothing else in its place.
local function is_there(uuid)
    return redis.call('TYPE', record(uuid)).ok == 'hash'
end

-- HSET of ARGV[first] to ARGV[last], and of where the attempts stand. In steps, since a call takes so many arguments and no more; gives
-- how many of all these fields are new, or nil where somebody has put something else in the place of the record: an error here would leave a
-- script half done.
local function set_fields(key, first, last, attempts_at)
    local added = 0
    for from = first, last, 4000 do
        local values = {unpack(ARGV, from, math.min(from + 3999, last))}
        if attempts_at and from == first then
            values[#values + 1] = 'attempts_at'
            values[#values + 1] = attempts_at
        end
        local new = redis.pcall('HSET', key, unpack(values))
        if type(new) == 'table' then
            if string.find(new.err, 'WRONGTYPE', 1, true) then return nil end
            -- Anything else, a full server, is an error, as it is: it comes before the first write.
            new = redis.call('HSET', key, unpack(values))
        end
        added = added + new
    end
    return added
end

-- Ends a lease, and puts its task back to the front of the queue as `item`, where nobody has removed it meanwhile.
local function wait_again(uuid, leased_item, item, now)
    redis.call('HDEL', leases, uuid)
    redis.call('ZREM', process, leased_item)
    if is_there(uuid) then
        redis.call('HSET', record(uuid), 'status', 'new', 'updated_at', now)
        redis.call('LPUSH', queue, item)
    end
end

-- What these workers hold, in the order in which they took it.
local function leases_of(whose)
    local found, all = {}, redis.call('HGETALL', leases)
    for at = 1, #all, 2 do
        local delivery, worker, item = lease_of(all[at + 1])
        if whose[worker] then
            found[#found + 1] = {uuid = all[at], delivery = tonumber(delivery), item = item}
        end
    end
    table.sort(found, function(a, b) return a.delivery < b.delivery end)
    return found
end

-- Where a task is that has no lease: its item, and the key of the queue, of the delayed, or of what Python workers run. Nothing where it is
-- nowhere: a Python worker takes a task first, and notes that it has it afterwards.
local function place_of(uuid, item)
    if redis.call('ZSCORE', delayed, item) then return item, delayed end
    if redis.call('ZSCORE', process, item) then return item, process end
    if redis.call('LPOS', queue, item) then return item, queue end
    -- The record may have been changed since it was queued.
    local lists = {[queue] = 'LRANGE', [delayed] = 'ZRANGE', [process] = 'ZRANGE'}
    for key, command in pairs(lists) do
        for _, item in ipairs(redis.call(command, key, 0, -1)) do
            if string.find(item, uuid, 1, true) then return item, key end
        end
    end
end

-- The record at the end of a chain of retries: who asks for a task means that one.
local function last_of(uuid)
    for _ = 1, 1000 do
        local found = redis.call('HMGET', record(uuid), 'status', 'retry_child_uuid')
        if found[1] ~= 'retry' or not found[2] or not is_there(found[2]) then break end
        uuid = found[2]
    end
    return uuid
end
