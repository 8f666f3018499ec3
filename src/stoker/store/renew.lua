-- Says that holds still have a living owner, and puts back those that were lost with the server's memory.
-- KEYS: one for each hold. ARGV: for each hold its lifetime in microseconds and its id.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i, key in ipairs(KEYS) do
  local span = tonumber(ARGV[2 * i - 1])
  redis.call('ZADD', key, string.format('%.0f', now + span), ARGV[2 * i])
  local lifetime = math.ceil(span / 1000)
  if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, string.format('%.0f', lifetime)) end
end
