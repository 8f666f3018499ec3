-- Takes all claims or none. What a ring is stands in protocols.py; ring.py does the same in Python: change both together.
-- KEYS: one for each claim. ARGV: now in microseconds, or '' for this server's clock, by which all replicas agree; then
-- for each claim four: 'w', limit, window in microseconds, amount; or 'h', limit, lifetime in microseconds, id.
-- Returns granted (1 or 0), the instant, and for each claim: remaining, microseconds to reset, microseconds to wait
-- (-1: never).
local STEPS = 60

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- Lua's own tostring has 14 digits; an instant has 16.
local function digits(number)
  return string.format('%.0f', number)
end

local function load(key, span)
  local raw = redis.call('GET', key)
  if not raw then return {} end
  local sound, ring = pcall(cmsgpack.unpack, raw)
  if not sound or type(ring) ~= 'table' then return {} end
  -- A clock that was set back by more than a window must not lock callers out until it has caught up.
  if #ring > 0 and ring[#ring - 1] > now + span then return {} end
  return ring
end

local claims = {}
local clock = now
for i, key in ipairs(KEYS) do
  local claim = { key = key, window = ARGV[4 * i - 2] == 'w', limit = tonumber(ARGV[4 * i - 1]), span = tonumber(ARGV[4 * i]) }
  if claim.window then
    claim.amount = tonumber(ARGV[4 * i + 1])
    claim.ring = load(key, claim.span)
    -- Time never goes backwards within a ring.
    if #claim.ring > 0 then clock = math.max(clock, claim.ring[#claim.ring - 1]) end
  else
    claim.id = ARGV[4 * i + 1]
  end
  claims[i] = claim
end
now = clock

local granted = true
for _, claim in ipairs(claims) do
  if claim.window then
    local alive, used = {}, 0
    for at = 1, #claim.ring, 3 do
      if claim.ring[at + 1] + claim.span > now then
        for offset = 0, 2 do alive[#alive + 1] = claim.ring[at + offset] end
        used = used + claim.ring[at + 2]
      end
    end
    claim.ring, claim.used = alive, used
    if claim.amount > 0 and used + claim.amount > claim.limit then granted = false end
  else
    claim.used = redis.call('ZCOUNT', claim.key, '(' .. digits(now), '+inf')
    if claim.used >= claim.limit then granted = false end
  end
end

local function record(claim)
  if claim.window then
    local ring = claim.ring
    local size = #ring
    if size > 0 and now < ring[size - 2] + math.floor(claim.span / STEPS) then
      ring[size - 1] = now
      ring[size] = ring[size] + claim.amount
    else
      ring[size + 1], ring[size + 2], ring[size + 3] = now, now, claim.amount
    end
    claim.used = claim.used + claim.amount
    claim.amount = 0
    redis.call('SET', claim.key, cmsgpack.pack(ring), 'PX', digits(math.ceil(claim.span / 1000)))
  else
    redis.call('ZREMRANGEBYSCORE', claim.key, '-inf', digits(now))
    redis.call('ZADD', claim.key, digits(now + claim.span), claim.id)
    local lifetime = math.ceil(claim.span / 1000)
    if redis.call('PTTL', claim.key) < lifetime then redis.call('PEXPIRE', claim.key, digits(lifetime)) end
    claim.used = claim.used + 1
  end
end

local function reset(claim)
  for at = #claim.ring - 2, 1, -3 do
    if claim.ring[at + 2] > 0 then return claim.ring[at + 1] + claim.span - now end
  end
  return 0
end

local function wait(claim)
  if claim.amount == 0 or claim.used + claim.amount <= claim.limit then return 0 end
  if claim.amount > claim.limit then return -1 end
  local left = claim.used
  for at = 1, #claim.ring, 3 do
    left = left - claim.ring[at + 2]
    if left + claim.amount <= claim.limit then return claim.ring[at + 1] + claim.span - now end
  end
  return 0
end

local reply = { granted and 1 or 0, now }
for _, claim in ipairs(claims) do
  if granted then record(claim) end
  reply[#reply + 1] = math.max(0, claim.limit - claim.used)
  reply[#reply + 1] = claim.window and reset(claim) or 0
  reply[#reply + 1] = claim.window and wait(claim) or 0
end
return reply
