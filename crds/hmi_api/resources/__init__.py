"""The custom resources Domain and TaskAdapter: types, CRDs, conditions, reasons and manifests."""
