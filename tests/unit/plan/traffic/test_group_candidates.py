from tests.unit.plan.test_plan import asked
from tests.unit.plan.traffic.test_step_times import measured

from rufus_serve.plan.plan import make_plan
from rufus_serve.plan.published import LLAMA31_405B
from rufus_serve.plan.traffic.group_candidates import of_measured, of_plan, plans
from rufus_serve.plan.traffic.step_times import DecodePoint, PrefillPoint


def tried(request, *, nodes_given=False, batch_given=False):
    found = plans(request, nodes_given=nodes_given, batch_given=batch_given)
    return [(p.request.num_nodes, p.request.max_num_seqs, p.request.cp_degree) for p in found]


def test_the_fewest_nodes_and_twice_as_many_are_tried_with_and_without_hybrid_attention():
    shapes = tried(asked(max_num_seqs=8), batch_given=True)
    assert shapes == [(1, 8, 1), (2, 8, 1), (2, 8, 2)]


def test_several_batches_are_tried_unless_one_is_given():
    batches = {batch for _, batch, _ in tried(asked())}
    assert len(batches) > 3
    assert {batch for _, batch, _ in tried(asked(max_num_seqs=2), batch_given=True)} == {2}


def test_given_nodes_are_not_varied():
    assert {nodes for nodes, _, _ in tried(asked(num_nodes=2), nodes_given=True)} == {2}


def test_nodes_that_form_no_group_are_not_doubled():
    assert {nodes for nodes, _, _ in tried(asked(instance="inf2.48xlarge", cores_per_node=16))} == {
        1
    }


def test_what_fits_nowhere_is_no_candidate():
    assert tried(asked(LLAMA31_405B), nodes_given=True) == []


def test_a_plan_brings_its_time_to_recover_unless_another_is_known():
    plan = make_plan(asked(max_num_seqs=4, max_model_len=2048))
    assert of_plan(plan).recover_s == plan.start_up.recover_s
    assert of_plan(plan, recover_s=5.0).recover_s == 5.0


def test_measured_times_bring_their_own_batching_and_overheads():
    found = of_measured(measured(front_ms=4.0, between_ms=1.0), num_nodes=2, recover_s=3.0)
    assert (found.shape.num_nodes, found.shape.max_num_seqs) == (2, 4)
    assert (found.front_s, found.between_s, found.recover_s) == (0.004, 0.001, 3.0)


def test_measured_times_of_groups_that_share_a_machine_are_its_groups_times_too():
    points = measured()
    both = measured(
        prefill=(*points.prefill, PrefillPoint(64, 60.0, groups=2)),
        decode=(*points.decode, DecodePoint(1, 128, 15.0, groups=2)),
    )
    fleet = of_measured(both, num_nodes=1, recover_s=1.0).fleet(2)
    assert fleet.times.decode_ms([128]) == 10.0
    assert [times.decode_ms([128]) for times in fleet.shared_times] == [15.0]
