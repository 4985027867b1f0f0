"""The schedules of `tests/contract`, checked against a reference."""

import numpy as np
from tests.contract.step_sequences import SCHEDULES, Sequences


def check_schedules(group, reference, layout):
    """Mixed lengths, full and partial batches in every order, preemption: as `reference` says."""
    random = np.random.default_rng(11)

    class Checked(Sequences):
        def run(self, *names):
            logits = super().run(*names)
            for name, found in logits.items():
                wanted = reference(self.tokens[name])
                np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=0)
            return logits

        def try_drafts(self, drafts):
            before = {name: list(self.tokens[name]) for name in drafts}
            logits = super().try_drafts(drafts)
            for name, rows in logits.items():
                for count, found in enumerate(rows):
                    wanted = reference(before[name] + list(drafts[name])[:count])
                    np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=0)
            return logits

    for schedule in SCHEDULES[layout]:
        sequences = Checked(group.step, group.info)
        schedule(sequences, lambda length: random.integers(3, 504, length).tolist())
