#include "pretrain/stop_signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace fathom::pretrain {
namespace {

TEST(StopSignals, AreAWishAndEndNothing) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const StopSignals signals(false);
    EXPECT_EQ(signals.received(), 0);
    std::raise(signal);
    std::raise(signal);  // as from a terminal and from a launcher
    EXPECT_EQ(signals.received(), signal);
  }
}

TEST(StopSignals, AnIgnoredOneStaysIgnored) {
  const auto before = std::signal(SIGINT, SIG_IGN);
  {
    const StopSignals signals(false);
    std::raise(SIGINT);
    EXPECT_EQ(signals.received(), 0);
  }
  EXPECT_EQ(std::signal(SIGINT, before), SIG_IGN);
}

TEST(StopSignalsDeathTest, ASecondOneLaterEndsTheProcess) {
  EXPECT_EXIT(
      {
        const StopSignals signals(true);
        std::raise(SIGTERM);
        sleep(3);
        std::raise(SIGTERM);
        std::_Exit(0);
      },
      testing::KilledBySignal(SIGTERM), "ending after this step, saved");
}

TEST(StopSignalsDeathTest, AfterwardsTheyEndTheProcessAsBefore) {
  EXPECT_EXIT(
      {
        { const StopSignals signals(false); }
        std::raise(SIGINT);
        std::_Exit(0);
      },
      testing::KilledBySignal(SIGINT), "");
  EXPECT_EXIT(end_by(SIGTERM), testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace fathom::pretrain
