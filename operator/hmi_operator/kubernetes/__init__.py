"""The operator on Kubernetes: the reconciler's ports on an API server, and the process around them.

Belongs here: everything that speaks to an API server. Forbidden here: rules of reconciliation, which are
``hmi_operator.planning``'s, and reading Secrets, which is never needed.

How they fit together::

    kopf watches -> ResourceCache -> WorkQueue -> Controller -> Reconciler -> KubeResourceStore -> API server
                                                                            -> ControlPlaneClient
                                                                            -> TrainingJobs
"""
