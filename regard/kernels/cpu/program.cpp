// Compiles expressions to a tile program. Each distinct node becomes one register; its shape is the union of its
// arguments' shapes, and the shape says how often it is computed: what does not depend on the pair is hoisted out of
// the loop over pairs. Registers of pairs get memory by last use, so that the working set of a chunk stays in L1.
#include "regard/kernels/cpu/program.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "regard/algebra/derivative.h"
#include "regard/base/error.h"
#include "regard/kernels/cpu/codes.h"

namespace regard::kernels {
namespace {

Shape united(Shape a, Shape b) {
  if (a == b || b == Shape::scalar) return a;
  return a == Shape::scalar ? b : Shape::pair;
}

Shape leaf_shape(Op op, Side lanes) {
  switch (op) {
    case Op::dot:
      return Shape::pair;
    case Op::query:
    case Op::row:
      return lanes == Side::queries ? Shape::lane : Shape::step;
    case Op::key:
    case Op::column:
      return lanes == Side::keys ? Shape::lane : Shape::step;
    default:
      return Shape::scalar;
  }
}

class Compiler {
 public:
  explicit Compiler(const ProgramRequest& request) : request_(request) {
    program_.lanes = request.lanes;
    program_.dots.assign(request.dots.size(), -1);
  }

  Program compile() {
    collect_roots();
    graph_ = flatten(roots_);
    mark_guards();
    for (size_t i = 0; i < graph_.entries.size(); ++i) emit(static_cast<int>(i));
    bind_roots();
    assign_slots();
    return std::move(program_);
  }

 private:
  /// Adds a root and returns its position, -1 for an empty or zero expression.
  int root(const Expr& expr) {
    if (!expr.defined()) return -1;
    roots_.push_back(expr);
    return static_cast<int>(roots_.size()) - 1;
  }

  void collect_roots() {
    keep_ = root(request_.keep);
    counted_ = root(request_.counted);
    live_ = counted_ >= 0 ? root(request_.keep | request_.counted) : -1;
    mask_roots_ = roots_.size();
    score_ = root(request_.score);
    std::vector<Expr> of_score = gradient_or_none(request_.score), of_weight = gradient_or_none(request_.weight);
    for (size_t i = 0; i < request_.leaves.size(); ++i) score_slopes_.push_back(nonzero_root(of_score[i]));
    score_roots_ = roots_.size();
    weight_ = root(request_.weight);
    for (size_t i = 0; i < request_.leaves.size(); ++i) weight_slopes_.push_back(nonzero_root(of_weight[i]));
    for (const Expr& leaf : request_.leaves) {
      index_roots_.push_back(static_cast<int>(roots_.size()));
      if (leaf.op() != Op::capture) continue;
      for (const Expr& index : leaf.node().args) root(index);
    }
  }

  std::vector<Expr> gradient_or_none(const Expr& f) const {
    if (!f.defined() || request_.leaves.empty()) return std::vector<Expr>(request_.leaves.size());
    return gradient(f, request_.leaves);
  }

  int nonzero_root(const Expr& slope) { return slope.defined() && !slope.is_constant(0) ? root(slope) : -1; }

  /// A read that the mask itself needs is guarded everywhere, one of the score where the pair is live, the others
  /// (weights) where it is kept.
  void mark_guards() {
    guards_.assign(graph_.entries.size(), Guard::kept);
    for (size_t r = score_roots_; r-- > 0;) {
      spread_guard(graph_.roots[r], r < mask_roots_ ? Guard::every_pair : Guard::live);
    }
  }

  void spread_guard(int first, Guard guard) {
    std::vector<int> pending{first};
    while (!pending.empty()) {
      const int entry = pending.back();
      pending.pop_back();
      Guard& known = guards_[entry];
      if (known == guard || known == Guard::every_pair) continue;
      known = guard;
      for (int arg : graph_.entries[entry].args) pending.push_back(arg);
    }
  }

  int new_register(Shape shape, Type type) {
    program_.registers.push_back({shape, type != Type::real, -1});
    return static_cast<int>(program_.registers.size()) - 1;
  }

  void emit(int entry) {
    const Graph::Entry& e = graph_.entries[entry];
    const Node& node = e.expr.node();
    Shape shape = leaf_shape(node.op, request_.lanes);
    for (int arg : e.args) shape = united(shape, program_.registers[arg].shape);
    const int reg = new_register(shape, node.type);  // position of the entry: entries come first
    if (node.op == Op::dot) return emit_dot(e.expr, reg);
    if (node.op == Op::capture) {
      return push(read_instruction(e, entry, reg, shape));
    }
    if (e.args.empty()) {
      program_.leaves.push_back({node.op, node.number, reg});
      return;
    }
    Instruction instruction{code_of(node.op, node.type, graph_.entries[e.args[0]].expr.type()), shape};
    instruction.result = reg;
    for (size_t a = 0; a < e.args.size(); ++a) instruction.arg[a] = e.args[a];
    push(instruction);
  }

  void emit_dot(const Expr& expr, int reg) {
    for (size_t d = 0; d < request_.dots.size(); ++d) {
      if (same(request_.dots[d], expr)) program_.dots[d] = reg;
    }
  }

  Instruction read_instruction(const Graph::Entry& e, int entry, int reg, Shape shape) {
    Instruction instruction{e.expr.type() == Type::real ? Code::read : Code::read_i, shape};
    instruction.result = reg;
    instruction.reading = static_cast<int32_t>(program_.reads.size());
    if (e.args.size() > static_cast<size_t>(kRank)) {
      fail("attention", "captured tensors of at most 8 dimensions",
           std::to_string(e.args.size()) + " of '" + e.expr.node().name + "'");
    }
    std::copy(e.args.begin(), e.args.end(), instruction.index);
    program_.reads.push_back({e.expr, guards_[entry]});
    program_.read_index.emplace_back(e.args.begin(), e.args.end());
    return instruction;
  }

  void push(const Instruction& instruction) {
    auto& code = instruction.shape == Shape::pair   ? program_.pair_code
                 : instruction.shape == Shape::step ? program_.step_code
                                                    : program_.lane_code;
    code.push_back(instruction);
  }

  /// The register of a root; one that varies with the step alone is spread over pairs, as views need.
  int view(int root) {
    if (root < 0) return -1;
    const int reg = graph_.roots[root];
    if (program_.registers[reg].shape != Shape::step) return reg;
    const auto known = spread_.find(reg);
    if (known != spread_.end()) return known->second;
    const bool integer = program_.registers[reg].integer;
    const int copy = new_register(Shape::pair, integer ? Type::integer : Type::real);
    Instruction instruction{integer ? Code::copy_i : Code::copy, Shape::pair};
    instruction.result = copy;
    instruction.arg[0] = reg;
    push(instruction);
    return spread_[reg] = copy;
  }

  void bind_roots() {
    multiply_by_reciprocals();
    add_marks();
    program_.keep = view(keep_);
    program_.counted = view(counted_);
    program_.live = counted_ >= 0 ? view(live_) : program_.keep;
    program_.score = view(score_);
    program_.weight = view(weight_);
    for (size_t i = 0; i < request_.leaves.size(); ++i) {
      Derivative derivative{request_.leaves[i], view(score_slopes_[i]), view(weight_slopes_[i]), {}, Shape::scalar};
      if (derivative.leaf.op() == Op::capture) {
        for (size_t k = 0; k < derivative.leaf.node().args.size(); ++k) {
          const int reg = graph_.roots[index_roots_[i] + k];
          derivative.index.push_back(reg);
          derivative.shape = united(derivative.shape, program_.registers[reg].shape);
        }
      }
      program_.derivatives.push_back(std::move(derivative));
    }
  }

  static bool normal(double x) {
    return std::abs(x) >= std::numeric_limits<float>::min() && std::abs(x) <= std::numeric_limits<float>::max();
  }

  /// x / c with a constant c becomes x (1 / c): a division takes as long as sixteen multiplications.
  void multiply_by_reciprocals() {
    for (auto* code : {&program_.lane_code, &program_.step_code, &program_.pair_code}) {
      for (Instruction& instruction : *code) {
        if (instruction.code != Code::div) continue;
        const Node& divisor = graph_.entries[static_cast<size_t>(instruction.arg[1])].expr.node();
        if (divisor.op != Op::constant || !normal(divisor.number) || !normal(1 / divisor.number)) continue;
        const int reg = new_register(Shape::scalar, Type::real);
        program_.leaves.push_back({Op::constant, 1 / divisor.number, reg});
        instruction.code = Code::mul;
        instruction.arg[1] = reg;
      }
    }
  }

  /// Every read gets a register of marks, used when its indices are not proven to lie inside.
  void add_marks() {
    program_.read_registers.resize(program_.reads.size());
    for (auto* code : {&program_.lane_code, &program_.step_code, &program_.pair_code}) {
      for (Instruction& instruction : *code) {
        if (instruction.reading < 0) continue;
        instruction.bad = new_register(instruction.shape, Type::integer);
        program_.read_registers[instruction.reading] = instruction.bad;
      }
    }
  }

  /// What is read after the chunk has run.
  void collect_permanent() {
    permanent_ = {program_.keep, program_.counted, program_.live, program_.score, program_.weight};
    for (const Derivative& d : program_.derivatives) {
      permanent_.push_back(d.score);
      permanent_.push_back(d.weight);
      permanent_.insert(permanent_.end(), d.index.begin(), d.index.end());
    }
    permanent_.insert(permanent_.end(), program_.read_registers.begin(), program_.read_registers.end());
    // An index that lies outside is named in the error.
    for (const auto& index : program_.read_index) permanent_.insert(permanent_.end(), index.begin(), index.end());
  }

  std::vector<int> last_uses() const {
    std::vector<int> last(program_.registers.size(), -1);
    for (size_t n = 0; n < program_.pair_code.size(); ++n) {
      for (int arg : program_.pair_code[n].arg) {
        if (arg >= 0) last[arg] = static_cast<int>(n);
      }
    }
    for (int reg : permanent_) {
      if (reg >= 0) last[reg] = static_cast<int>(program_.pair_code.size());
    }
    return last;
  }

  /// A result never shares memory with an argument of its own instruction: they may differ in size.
  void assign_slots() {
    collect_permanent();
    const std::vector<int> last = last_uses();
    std::vector<int> free_slots[2];
    int* count[2] = {&program_.real_slots, &program_.integer_slots};
    auto give = [&](int reg) {
      RegisterKind& kind = program_.registers[reg];
      auto& available = free_slots[kind.integer];
      if (available.empty()) available.push_back((*count[kind.integer])++);
      kind.slot = available.back();
      available.pop_back();
    };
    for (size_t n = 0; n < program_.pair_code.size(); ++n) {
      const Instruction& instruction = program_.pair_code[n];
      give(instruction.result);
      if (instruction.bad >= 0) give(instruction.bad);
      for (int reg = 0; reg < static_cast<int>(last.size()); ++reg) {
        const RegisterKind& kind = program_.registers[reg];
        if (last[reg] == static_cast<int>(n) && kind.slot >= 0) free_slots[kind.integer].push_back(kind.slot);
      }
    }
  }

  const ProgramRequest& request_;
  Program program_;
  Graph graph_;
  std::vector<Expr> roots_;
  std::vector<Guard> guards_;
  std::vector<int> score_slopes_, weight_slopes_, index_roots_, permanent_;
  std::map<int, int> spread_;
  int keep_ = -1, counted_ = -1, live_ = -1, score_ = -1, weight_ = -1;
  size_t mask_roots_ = 0, score_roots_ = 0;
};

}  // namespace

Program compile(const ProgramRequest& request) { return Compiler(request).compile(); }

}  // namespace regard::kernels
