-- Renews leases.
-- ARGV: now; lease in microseconds; then for each job: id, token, whether progress is told (1 or 0), progress.
-- Returns for each 'held', 'cancelled' or 'lost'.
local answers = {}
for at = 3, #ARGV, 4 do
  local id = ARGV[at]
  local job = get(id, 'token', 'state', 'cancelling')
  if job[1] == ARGV[at + 1] and job[2] == 'running' then
    redis.call('ZADD', base .. 'l', digits(now + tonumber(ARGV[2])), id)
    if ARGV[at + 2] == '1' then redis.call('HSET', base .. 'j:' .. id, 'progress', ARGV[at + 3]) end
    answers[#answers + 1] = job[3] and 'cancelled' or 'held'
  else
    answers[#answers + 1] = 'lost'
  end
end
return answers
