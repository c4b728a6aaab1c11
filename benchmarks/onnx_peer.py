"""ONNX Runtime's MultiHeadAttention (com.microsoft), inputs and output bound so that nothing is copied."""

from __future__ import annotations

from .cases import Case


def make(case: Case, sets, threads: int):
    """A call that runs the next of `sets`, each (q, k, v) of (B, H, L, D); the node reads (B, L, H * D)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(_model(case), options, providers=["CPUExecutionProvider"])
    bindings = [_bind(onnxruntime, session, tensors) for tensors in sets]
    position = -1

    def run():
        nonlocal position
        position = (position + 1) % len(bindings)
        session.run_with_iobinding(bindings[position])

    return run


def _bind(onnxruntime, session, tensors):
    binding = session.io_binding()
    for name, tensor in zip(("query", "key", "value"), tensors):
        packed = tensor.detach().transpose(1, 2).flatten(2).contiguous().numpy()
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(packed))
    binding.bind_output("output")
    return binding


def _model(case: Case) -> bytes:
    from onnx import TensorProto, helper

    def value(name, length, width):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [case.B, length, case.H * width])

    node = helper.make_node("MultiHeadAttention", ["query", "key", "value"], ["output"], domain="com.microsoft",
                            num_heads=case.H, unidirectional=int(case.causal))
    graph = helper.make_graph([node], "attention",
                              [value("query", case.M, case.Dh), value("key", case.N, case.Dh),
                               value("value", case.N, case.Dv)], [value("output", case.M, case.Dv)])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17),
                                                                   helper.make_opsetid("com.microsoft", 1)])
    return model.SerializeToString()
