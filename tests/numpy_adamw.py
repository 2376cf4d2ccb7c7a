"""AdamW in float64 NumPy, written from the papers and nothing else.

Adam is the form before section 2.1 of Kingma and Ba, whose epsilon ("epsilon
hat") is added to the square root of the uncorrected second moment. The decay
is that of Loshchilov and Hutter, times the learning rate. AMSGrad is that of
Reddi et al. with the maximum taken over the uncorrected second moment.

References:
  Kingma and Ba, 2015: https://arxiv.org/abs/1412.6980
  Loshchilov and Hutter, 2019: https://arxiv.org/abs/1711.05101
  Reddi, Kale and Kumar, 2018: https://openreview.net/pdf?id=ryQu7f-RZ
"""

import re

import numpy as np


def global_norm(arrays):
    """The Euclidean norm of all elements of all arrays."""
    return np.sqrt(sum(np.sum(np.square(array)) for array in arrays))


def _limit_norm(gradient, norm, limit):
    return gradient * (limit / max(norm, limit))


def _factor(multipliers, key):
    """That of the first pattern that fits."""
    found = (f for p, f in multipliers.items() if re.search(p, key))
    return next(found, 1.0)


def one_minus_power(beta, t):
    """`1 - beta^t` to float64 accuracy: near one, float64 cancels digits."""
    return np.float64(1 - np.longdouble(beta) ** t)


class NumpyAdamW:
    """One training run: weights and state by key, all in float64.

    The options are those of the optimizer. `learning_rate` and
    `weight_decay` may be functions of the step, and `loss_scale_factor` an
    object with the fields of a dynamic one. `round_to` is the dtype that the
    weights are rounded to after every update. Every option is a plain
    attribute that may be changed between two steps.
    """

    def __init__(
        self,
        weights,
        *,
        learning_rate=0.001,
        weight_decay=0.004,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        amsgrad=False,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        exclude_from_weight_decay=(),
        learning_rate_multipliers=None,
        weight_decay_multipliers=None,
        decay_coupling="learning_rate",
        base_learning_rate=None,
        skip_nonfinite=False,
        round_to=None,
    ):
        self.weights = {k: np.array(w, np.float64) for k, w in weights.items()}
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        dynamic = hasattr(loss_scale_factor, "growth_interval")
        self.loss_scale_rule = loss_scale_factor if dynamic else None
        self.loss_scale = loss_scale_factor or 1.0
        if dynamic:
            self.loss_scale = loss_scale_factor.initial
        self.good_updates = 0
        self.window = gradient_accumulation_steps or 1
        self.excluded = exclude_from_weight_decay
        self.multipliers = learning_rate_multipliers or {}
        self.decay_multipliers = weight_decay_multipliers or {}
        self.decay_coupling = decay_coupling
        self.base_learning_rate = base_learning_rate
        self.skip_nonfinite = skip_nonfinite
        self.round_to = round_to
        self.iterations = 0
        self.position = 0
        self.averaged = set()  # keys with an average
        # Of the last update: what each variable received after the clipping,
        # the same without cancellation inside the window, and its change per
        # unit of momentum, alpha / (sqrt(v) + epsilon).
        self.last_gradients = {}
        self.last_magnitudes = {}
        self.last_gains = {}
        self.slots = {
            name: self._zeros()
            for name in ("momentum", "velocity", "velocity_max", "accumulator")
        }
        self.slots["average"] = {k: w.copy() for k, w in self.weights.items()}
        self._absolute = self._zeros()
        self._seen_in_window = set()

    def apply(self, gradients):
        """One step from {key: gradient or None}: (applied, gradient norm)."""
        given = {
            key: np.asarray(gradient, np.float64) / self.loss_scale
            for key, gradient in gradients.items()
            if gradient is not None
        }
        magnitudes = {key: np.abs(gradient) for key, gradient in given.items()}
        if self.window > 1:
            given, magnitudes = self._accumulate(given)
            if given is None:
                return False, np.nan
        norm = global_norm(given.values())
        finite = all(np.isfinite(g).all() for g in given.values())
        if not finite and self.loss_scale_rule:
            self.good_updates = 0
            smaller = self.loss_scale / self.loss_scale_rule.factor
            self.loss_scale = max(smaller, 1.0)
        if not finite and (self.skip_nonfinite or self.loss_scale_rule):
            return False, norm
        self.last_gradients = self._clip(given, norm)
        for key, gradient in self.last_gradients.items():
            kept = np.abs(gradient) / np.where(given[key], abs(given[key]), 1)
            kept = np.where(given[key], kept, 1)
            self.last_magnitudes[key] = kept * magnitudes[key]
            self._update(key, gradient)
        self.iterations += 1
        if self.use_ema:
            self._average(given)
        if self.loss_scale_rule:
            self._count_good_update()
        return True, norm

    def _count_good_update(self):
        self.good_updates += 1
        if self.good_updates == self.loss_scale_rule.growth_interval:
            self.good_updates = 0
            self.loss_scale *= self.loss_scale_rule.factor

    def _zeros(self):
        return {k: np.zeros_like(w) for k, w in self.weights.items()}

    def _accumulate(self, given):
        """The window's means of g and |g|, or None while it is incomplete."""
        total = self.slots["accumulator"]
        for key, gradient in given.items():
            total[key] = total[key] + gradient
            self._absolute[key] = self._absolute[key] + np.abs(gradient)
        self._seen_in_window |= set(given)
        self.position += 1
        if self.position < self.window:
            return None, None
        mean, magnitude = (
            {key: sums[key] / self.position for key in self._seen_in_window}
            for sums in (total, self._absolute)
        )
        self.slots["accumulator"] = self._zeros()
        self._absolute = self._zeros()
        self._seen_in_window = set()
        self.position = 0
        return mean, magnitude

    def _clip(self, gradients, norm):
        if self.clipvalue is not None:
            limit = self.clipvalue
            return {k: np.clip(g, -limit, limit) for k, g in gradients.items()}
        if self.clipnorm is not None:
            return {
                k: _limit_norm(g, global_norm([g]), self.clipnorm)
                for k, g in gradients.items()
            }
        if self.global_clipnorm is not None:
            return {
                k: _limit_norm(g, norm, self.global_clipnorm)
                for k, g in gradients.items()
            }
        return gradients

    def _now(self, hyperparameter):
        """Its value at this update: a schedule reads the calls that counted."""
        if not callable(hyperparameter):
            return hyperparameter
        return hyperparameter(self.iterations * self.window + self.window - 1)

    def rate(self, key):
        """The learning rate of one variable at this update."""
        return _factor(self.multipliers, key) * self._now(self.learning_rate)

    def decay(self, key):
        """What is subtracted of each unit of a weight at this update."""
        if any(re.search(pattern, key) for pattern in self.excluded):
            return 0.0
        rate = self._now(self.learning_rate)
        coupling = {
            "learning_rate": rate,
            "schedule": rate / (self.base_learning_rate or 1.0),
            "none": 1.0,
        }
        factor = _factor(self.multipliers, key)
        factor *= _factor(self.decay_multipliers, key)
        decay = self._now(self.weight_decay)
        return factor * coupling[self.decay_coupling] * decay

    def _update(self, key, gradient):
        if _factor(self.multipliers, key) == 0:
            return
        beta_1, beta_2, t = self.beta_1, self.beta_2, self.iterations + 1
        momentum = self._blend("momentum", key, gradient, beta_1)
        velocity = self._blend("velocity", key, gradient**2, beta_2)
        if self.amsgrad:
            largest = self.slots["velocity_max"]
            velocity = largest[key] = np.maximum(largest[key], velocity)
        correction = np.sqrt(one_minus_power(beta_2, t))
        alpha = self.rate(key) * correction / one_minus_power(beta_1, t)
        decay = self.decay(key)
        weight = self.weights[key]
        gain = alpha / (np.sqrt(velocity) + self.epsilon)
        self.last_gains[key] = gain
        self._set_weight(key, weight - decay * weight - gain * momentum)

    def _blend(self, name, key, value, beta):
        slot = self.slots[name]
        slot[key] = beta * slot[key] + (1 - beta) * value
        return slot[key]

    def _set_weight(self, key, value):
        if self.round_to is not None:
            value = value.astype(self.round_to).astype(np.float64)
        self.weights[key] = value

    def _average(self, updated):
        updated = [k for k in updated if _factor(self.multipliers, k) != 0]
        for key in updated:
            momentum = self.ema_momentum if key in self.averaged else 0.0
            self.averaged.add(key)
            self._blend("average", key, self.weights[key], momentum)
        frequency = self.ema_overwrite_frequency
        if frequency and self.iterations % frequency == 0:
            for key in updated:
                self._set_weight(key, self.slots["average"][key])
