"""Types and rules that two or more of HMI's packages share.

- ``resources``: the custom resources Domain and TaskAdapter, their CRDs, conditions and reasons.
- ``internal``: the types and the client of the control plane's internal API.
- ``security``: bearer tokens, authentication of callers, and limits on outbound addresses.
- The modules here: errors, settings, names, artifacts and tag schemes.

Import nothing of the other HMI packages here, and no torch, SQL or web framework.
"""
