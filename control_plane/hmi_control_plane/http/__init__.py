"""What every HTTP process of the control plane has, whichever routes it serves.

Belongs here: error answers, middleware, metrics of requests, health, the API description, the server itself.
Forbidden here: what a particular endpoint does.
"""
