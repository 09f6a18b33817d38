"""The validating webhook: refuses at ``kubectl apply`` what the plan would refuse afterwards.

Belongs here: reviews of what is created or changed, and the HTTPS server that answers them, by a standby as
well as by the leader. Forbidden here: rules of its own; those are ``hmi_operator.planning.validation``'s and
``hmi_api``'s, and hold in the Accepted condition where this webhook was not asked.
"""

from hmi_operator.kubernetes.webhook.review import Reviewer
from hmi_operator.kubernetes.webhook.server import WebhookAddress, serving_webhook

__all__ = ["Reviewer", "WebhookAddress", "serving_webhook"]
