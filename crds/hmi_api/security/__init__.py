"""Bearer tokens, authentication of callers, limits on requests and on outbound addresses, proxies."""
