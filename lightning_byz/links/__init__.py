"""Links: what a worker compresses of its messages, and how the rules rebuild them."""

from lightning_byz.links.diana import Diana
from lightning_byz.links.direct import Direct
from lightning_byz.links.downlink import Downlink
from lightning_byz.links.ef21 import EF21
from lightning_byz.links.error_feedback import ErrorFeedback
from lightning_byz.links.heavy_ball import HeavyBall
from lightning_byz.links.link import Link, Received

__all__ = ["EF21", "Diana", "Direct", "Downlink", "ErrorFeedback", "HeavyBall", "Link", "Received"]
