-- Writes what a running job says: to the end of its stream, at the cost of the oldest.
-- ARGV: now; id; token; most events; most bytes; milliseconds they are kept after the last; then the events.
-- Returns whether the token holds (1 or 0).
local id, events, octets = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local name, stream = base .. 'j:' .. id, base .. 'e:' .. id
local job = get(id, 'token', 'attempts')
if job[1] ~= ARGV[3] then return 0 end
if redis.call('EXISTS', stream) == 0 then redis.call('HDEL', name, 'event_octets') end
for at = 7, #ARGV do
  local number = redis.call('HINCRBY', name, 'events', 1)
  redis.call('XADD', stream, digits(number) .. '-0', 'a', job[2], 'd', ARGV[at])
  local kept = redis.call('HINCRBY', name, 'event_octets', #ARGV[at])
  local length = redis.call('XLEN', stream)
  while length > events or (kept > octets and length > 1) do
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', stream, oldest[1])
    kept = redis.call('HINCRBY', name, 'event_octets', -#oldest[2][4])
    length = length - 1
  end
end
redis.call('PEXPIRE', stream, ARGV[6])
ring(id)
return 1
