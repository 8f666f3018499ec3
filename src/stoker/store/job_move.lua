-- Moves one job on.
-- ARGV: now; what to do; id; token ('' to cancel); then what that wants.
--   finish: state, names and values of its result and error. Returns 'ok'.
--   retry: error, not_before in microseconds. Returns 'queued', 'failed' or 'cancelled'.
--   release. Returns 'ok'.
--   cancel. Returns the state after it, or nothing when there is no such job.
-- Returns 'lost' for a stale token.
local what, id, token = ARGV[2], ARGV[3], ARGV[4]
local name = base .. 'j:' .. id
local job = get(id, 'state', 'token', 'cancelling', 'attempts', 'max_attempts')
if what == 'cancel' then
  if job[1] == 'queued' then
    finish(id, 'cancelled')
    return 'cancelled'
  end
  if job[1] == 'running' then
    redis.call('HSET', name, 'cancelling', 1)
    ring(id)
  end
  return job[1]
end
if job[1] ~= 'running' or job[2] ~= token then return 'lost' end

local function again(not_before)
  enter({ requeue(id, not_before) })
  ring('work')
end

if what == 'finish' then
  finish(id, ARGV[5])
  redis.call('HDEL', name, 'result', 'error')
  if #ARGV > 5 then redis.call('HSET', name, unpack(ARGV, 6)) end
  return 'ok'
end
if what == 'release' then
  redis.call('HINCRBY', name, 'attempts', -1)
  redis.call('HDEL', name, 'started', 'progress')
  if job[3] then finish(id, 'cancelled') else again(0) end
  return 'ok'
end
redis.call('HSET', name, 'error', ARGV[5])
if job[3] then
  finish(id, 'cancelled')
  return 'cancelled'
end
if tonumber(job[4]) >= tonumber(job[5]) then
  finish(id, 'failed')
  return 'failed'
end
again(tonumber(ARGV[6]))
return 'queued'
