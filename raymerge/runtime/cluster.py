"""The Ray engine: one long-lived actor per GPU or slice of CPUs, scheduled by the driver.

    driver   queue of units --unit--> actor   `threads` units run; one more waits its turn,
                   ^                          its inputs on their way from the disk already
                   |  <--receipt, figures--
                   '--units of a lost actor, to be run again by any other

Ray restarts and retries nothing: its retry of a call waits for that very actor, for good if the
place is gone. Units are pure, so running one twice writes the same bytes at the same address.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock, Semaphore, current_thread, main_thread
from typing import Any

import numba
import numpy as np
import ray
from ray import exceptions as lost
from ray._private import worker as ray_driver
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.errors import ClusterError, RaymergeError
from raymerge.kernels.jit import kernel_hash
from raymerge.plan.graph import Unit
from raymerge.runtime.engine import Call
from raymerge.runtime.placement import Node, Place, place
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
