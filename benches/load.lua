-- Prints what wrk saw as one line of JSON. With an argument, every connection pauses between its requests for an
-- exponentially distributed time of that mean (milliseconds), so that the load has a rate instead of being all there is.
local pause_ms = 0

function init(args)
  pause_ms = tonumber(args[1] or "0")
  math.randomseed(os.time())
end

function delay()
  if pause_ms == 0 then return 0 end
  return math.floor(-pause_ms * math.log(1 - math.random()) + 0.5)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"seconds":%.6f,"failed":%d,"p50_us":%.0f,"p99_us":%.0f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
