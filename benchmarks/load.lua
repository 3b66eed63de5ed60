-- Requests of wrk: a random blob (or a plan) with a random device's token; the sums as JSON. With LOOKS, a
-- file of one plan for each adapter, one device after the other asks for its version of one of them and
-- then for a plan: from number FIRST on, and after COUNT devices from there again.
local tokens, paths = {}, {}
for line in io.lines(os.getenv("TOKENS")) do tokens[#tokens + 1] = line end
for line in io.lines(os.getenv("PATHS")) do paths[#paths + 1] = line end
local plan = os.getenv("PLAN")
math.randomseed(tonumber(os.getenv("SEED")))

local looks, first, count, number, asked = {}, tonumber(os.getenv("FIRST")), tonumber(os.getenv("COUNT")), 0, nil
if first then for line in io.lines(os.getenv("LOOKS")) do looks[#looks + 1] = line end end

local look = function()
  if asked then
    local headers, body = asked.headers, asked.body
    asked = nil
    return wrk.format("POST", "/v1/plan", headers, body)
  end
  local k = first + number % count
  number = number + 1
  local adapter = (k + math.floor(k / #tokens)) % #looks
  local headers = {["Authorization"] = "Bearer " .. tokens[k % #tokens + 1],
                   ["Content-Type"] = "application/json"}
  asked = {headers = headers, body = looks[adapter + 1]}
  return wrk.format("GET", "/v1/adapters/a" .. adapter .. "/assigned?active=1", headers)
end

request = function()
  if first then return look() end
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
