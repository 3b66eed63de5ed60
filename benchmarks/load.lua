-- Requests of wrk: a random blob (or a plan) with a random device's token; the sums as JSON.
local tokens, paths = {}, {}
for line in io.lines(os.getenv("TOKENS")) do tokens[#tokens + 1] = line end
for line in io.lines(os.getenv("PATHS")) do paths[#paths + 1] = line end
local plan = os.getenv("PLAN")
math.randomseed(tonumber(os.getenv("SEED")))

request = function()
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
