-- Records what became of attempts, each whole or not at all. ARGV: now, how many, then uuid and delivery of each, then for each:
-- attempt ('' or JSON), the number of fields and values, these; child ('' or a uuid), and with a child its item, its due time ('' or
-- seconds), the number of fields and values, these. Gives the uuids whose lease was lost.
local now, count = ARGV[1], tonumber(ARGV[2])
local uuids = {}
for number = 1, count do uuids[number] = ARGV[1 + 2 * number] end
local values = redis.call('HMGET', leases, unpack(uuids))

local lost, done, items, times, log = {}, {}, {}, {}, {}
local at = 3 + 2 * count
for number, uuid in ipairs(uuids) do
    local delivery = ARGV[2 + 2 * number]
    local attempt, fields = ARGV[at], tonumber(ARGV[at + 1])
    local first, child = at + 2, ARGV[at + 2 + fields]
    at = at + 3 + fields
    local held, item
    if values[number] then
        local current, _, its_item = lease_of(values[number])
        held, item = current == delivery, its_item
    end
    if held then
        set_fields(record(uuid), first, first + fields - 1)
        done[#done + 1] = uuid
        items[#items + 1] = item
        times[#times + 1] = now
        times[#times + 1] = uuid
        if attempt ~= '' then
            log[#log + 1] = 'attempt'
            log[#log + 1] = attempt
        end
    elseif redis.call('HGET', record(uuid), 'delivery') ~= delivery then
        -- Not lost where this very delivery was recorded: then the answer to an earlier call did not arrive.
        lost[#lost + 1] = uuid
    end
    if child ~= '' then
        local child_item, due, child_fields = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
        if held then
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
call_over('HDEL', leases, done)
call_over('ZREM', process, items)
call_over('ZADD', ended, times)
if #log > 0 then redis.call('XADD', attempts, '*', unpack(log)) end
if #done > 0 then redis.call('PUBLISH', changed, '') end
return lost
