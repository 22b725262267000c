/* Arithmetic on doubles (SSE) and long doubles (x87) whose results are exact by IEEE 754, to be the same on every processor. */
#include <fenv.h>
#include <math.h>
#include <stdio.h>

static void show(const char *what, long double x) { printf("%s %.21Lg %La\n", what, x, x); }

int main(void) {
    static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
    for (int m = 0; m < 4; m++) {
        fesetround(modes[m]);
        feclearexcept(FE_ALL_EXCEPT);
        volatile double d = 0;
        volatile long double l = 0;
        for (int k = 1; k <= 20000; k++) {
            d += 1.0 / ((double)k * k);
            l += 1.0L / ((long double)k * k);
        }
        show("basel double", d);
        show("basel long double", l);
        show("root", sqrtl(l * 6));
        show("as double", (double)l);
        show("as float", (float)l);
        show("rounded", rintl(l * 1e6L));
        printf("as integers %lld %ld\n", llrintl(l * 1e12L), lrint(d * 1e9));
        printf("exceptions %x\n", fetestexcept(FE_ALL_EXCEPT));
    }
    fesetround(FE_TONEAREST);
    show("remainder", remainderl(1e4000L, 3.7L));
    show("fmod", fmodl(1e300L, 0.1L));
    show("sine", sinl(0.5L));
    show("scaled", scalbnl(1.25L, -16440));
    show("tiny", 1e-4940L / 7);
    show("huge", 1e4932L * 7);
    volatile long double zero = 0;
    printf("%d %d\n", isnan(sqrtl(zero - 1)), isinf(1 / zero));
    return 0;
}
