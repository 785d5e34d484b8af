-- After the writes of a transaction: what was missing before is missing again. Half a record would be in everybody's way.
local missing = redis.call('SMEMBERS', own .. 'missing')
if #missing > 0 then redis.call('DEL', own .. 'missing', unpack(missing)) end
