"""``hmi demo``: the main job from an empty folder to the bill, on the examples of this repository.

Belongs here: what the demonstration does and shows, through the same interfaces that users have.
Forbidden here: access to the planes other than through those interfaces.
"""
