# LibTorch's headers take 7 of the 13 seconds that a file with tensors needs: they are read once.
# Files still include all that they use.
function(precompile_headers)
  target_precompile_headers(fathom_model PRIVATE <torch/types.h>
                            <torch/csrc/autograd/grad_mode.h> <nlohmann/json.hpp>)
  foreach(target model_test fathom_pretrain pretrain_test engine_test fathom_bench)
    target_precompile_headers(${target} REUSE_FROM fathom_model)
  endforeach()
endfunction()
