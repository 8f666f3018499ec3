-- Corrects what was taken of windows, in the cells in which it was taken.
-- KEYS: one for each window. ARGV: when it was taken, in microseconds; then for each window the difference.
local stamp = tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  local raw = redis.call('GET', key)
  local sound, ring = pcall(cmsgpack.unpack, raw or '')
  if raw and sound and type(ring) == 'table' then
    for at = #ring - 2, 1, -3 do
      if ring[at] <= stamp and stamp <= ring[at + 1] then
        ring[at + 2] = math.max(0, ring[at + 2] + tonumber(ARGV[i + 1]))
        redis.call('SET', key, cmsgpack.pack(ring), 'KEEPTTL')
        break
      end
    end
  end
end
