-- Removes ended jobs whose time is over, a bounded number, and sees to lost and overdue ones.
-- ARGV: now; the error of a job that every worker lost; how many are removed at most.
-- Returns how many were removed, expired, taken back, and whether there is more to do (1 or 0).
local taken_back, expired, stopped = sweep(ARGV[2])
local over = redis.call('ZRANGEBYSCORE', base .. 'r', '-inf', digits(now), 'LIMIT', 0, ARGV[3])
for _, id in ipairs(over) do
  local job = get(id, 'tenant', 'batch', 'state')
  if job[1] then move(id, job[1], job[2], job[3], nil) end
  redis.call('ZREM', base .. 'r', id)
  redis.call('ZREM', base .. 'c', id)
  redis.call('UNLINK', base .. 'j:' .. id, base .. 'e:' .. id)
end
return { #over, expired, taken_back, (stopped or #over == tonumber(ARGV[3])) and 1 or 0 }
