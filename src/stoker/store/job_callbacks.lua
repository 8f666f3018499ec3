-- Hands out callbacks that are due, or notes what became of one.
-- ARGV: now; 'due', lease in microseconds, most. Returns each job's hash as names and values.
--   or: now; 'settle', id, what is noted, when to try again in microseconds ('' for never).
if ARGV[2] == 'settle' then
  local id, again_at = ARGV[3], ARGV[5]
  if not get(id, 'finished')[1] then return {} end
  redis.call('HSET', base .. 'j:' .. id, 'deliveries', ARGV[4])
  if again_at == '' then
    redis.call('ZREM', base .. 'c', id)
  else
    redis.call('ZADD', base .. 'c', again_at, id)
    ring('callbacks')
  end
  return {}
end
local jobs = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'c', '-inf', digits(now), 'LIMIT', 0, ARGV[4])) do
  redis.call('ZADD', base .. 'c', digits(now + tonumber(ARGV[3])), id)
  jobs[#jobs + 1] = redis.call('HGETALL', base .. 'j:' .. id)
end
return jobs
