-- Requests of wrk: a random blob (or a plan) with a random device's token; the sums as JSON. With LOOKS
-- adapters, each random device asks for its version of one of them and then for a plan.
local tokens, paths = {}, {}
for line in io.lines(os.getenv("TOKENS")) do tokens[#tokens + 1] = line end
for line in io.lines(os.getenv("PATHS")) do paths[#paths + 1] = line end
local plan = os.getenv("PLAN")
math.randomseed(tonumber(os.getenv("SEED")))

local looks, asked = tonumber(os.getenv("LOOKS") or "0"), nil

local look = function()
  if asked then
    local headers, body = asked.headers, asked.body
    asked = nil
    return wrk.format("POST", "/v1/plan", headers, body)
  end
  local name = "a" .. (math.random(looks) - 1)
  local headers = {["Authorization"] = "Bearer " .. tokens[math.random(#tokens)],
                   ["Content-Type"] = "application/json"}
  asked = {headers = headers, body = (plan:gsub('"a0"', '"' .. name .. '"'))}
  return wrk.format("GET", "/v1/adapters/" .. name .. "/assigned?active=1", headers)
end

request = function()
  if looks > 0 then return look() end
  local headers = {["Authorization"] = "Bearer " .. tokens[math.random(#tokens)]}
  if plan then
    headers["Content-Type"] = "application/json"
    return wrk.format("POST", "/v1/plan", headers, plan)
  end
  return wrk.format("GET", paths[math.random(#paths)], headers)
end

done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nJSON {"requests": %d, "seconds": %f, "bytes": %d, "errors": %d, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
