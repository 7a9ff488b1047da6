// Every op that can be recorded.
#pragma once

#include "refrain/ops/add/add.h"
#include "refrain/ops/argmax/argmax.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/gather_rows/gather_rows.h"
#include "refrain/ops/gelu_mul/gelu_mul.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/sample/sample.h"
#include "refrain/ops/silu_mul/silu_mul.h"
#include "refrain/ops/step_advance/step_advance.h"
