#pragma once

#include <memory>
#include <string>
#include <vector>

#include "regard/algebra/spec.h"
#include "regard/kernels/cpu/tile.h"

/// The CPU form of a spec: a short program run on whole tiles in cache.
namespace regard::kernels {

/// Which side of the pairs lies in vector lanes; the other side are the steps.
enum class Side : uint8_t { queries, keys };

/// What to compile. Roots left undefined have no register.
struct ProgramRequest {
  Expr score, weight;        ///< weight undefined: 1
  Expr keep, counted;        ///< undefined: every pair of the tile is kept and counted
  std::vector<Expr> dots;    ///< in the order of the score tiles
  std::vector<Expr> leaves;  ///< dots and capture reads whose derivatives are wanted
  Side lanes = Side::queries;
};

/// A leaf that the driver fills in: a constant, an index or a length.
struct Leaf {
  Op op;
  double number = 0;
  int reg = 0;
};

/// When an index of a read that lies outside is an error: always (keep reads it), where the pair is kept, or where it
/// is kept or counted.
enum class Guard : uint8_t { every_pair, kept, live };

struct Read {
  Expr expr;  ///< the capture node
  Guard guard = Guard::live;
};

/// d score / d leaf and d weight / d leaf as registers, -1 where zero.
struct Derivative {
  Expr leaf;
  int score = -1, weight = -1;
  std::vector<int> index;     ///< of a capture read: registers of its indices
  Shape shape = Shape::pair;  ///< of a capture read: what its indices vary with
};

struct RegisterKind {
  Shape shape = Shape::scalar;
  bool integer = false;
  int slot = -1;  ///< registers of pairs share memory: their slot among reals or integers
};

/// Instructions by what they vary with: once a tile of lanes, once a block of steps, once a chunk of pairs.
struct Program {
  std::vector<Instruction> lane_code, step_code, pair_code;
  std::vector<RegisterKind> registers;
  int real_slots = 0, integer_slots = 0;
  std::vector<Leaf> leaves;
  std::vector<int> dots;            ///< registers that point into the score tiles, -1 when not read
  std::vector<Read> reads;          ///< position = Instruction::reading
  std::vector<int> read_registers;  ///< where each read's marks are: position of its instruction's `bad`
  std::vector<std::vector<int>> read_index;
  int score = -1, weight = -1, keep = -1, counted = -1, live = -1;
  std::vector<Derivative> derivatives;
  Side lanes = Side::queries;
};

Program compile(const ProgramRequest& request);

}  // namespace regard::kernels
